package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"
)

// crds are the CustomResourceDefinitions of the chart by kind, each checked as the API server does when it is created:
// structure, lists, rules and what the rules cost.
func crds(t *testing.T) map[string]*apiextensions.CustomResourceDefinition {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(chartDir, "files", "crds", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no CRDs: %v", err)
	}
	all := map[string]*apiextensions.CustomResourceDefinition{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var v1 apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(text, &v1); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		apiextensionsv1.SetDefaults_CustomResourceDefinition(&v1)
		apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&v1.Spec)
		v1.Status.StoredVersions = []string{v1.Spec.Versions[0].Name}
		crd := &apiextensions.CustomResourceDefinition{}
		if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(&v1, crd,
			nil); err != nil {
			t.Fatal(err)
		}
		if errs := crdvalidation.ValidateCustomResourceDefinition(context.Background(), crd); len(errs) > 0 {
			t.Errorf("%s: %v", file, errs.ToAggregate())
		}
		all[v1.Spec.Names.Kind] = crd
	}
	return all
}

// TestCRDs: every field has a text for kubectl explain.
func TestCRDs(t *testing.T) {
	for kind, crd := range crds(t) {
		props := crd.Spec.Validation
		if props == nil {
			props = crd.Spec.Versions[0].Schema
		}
		for _, part := range []string{"spec", "status"} {
			walk(kind+"."+part, props.OpenAPIV3Schema.Properties[part], func(path string, s apiextensions.JSONSchemaProps) {
				if s.Description == "" {
					t.Errorf("%s has no description", path)
				}
			})
		}
	}
}

func walk(path string, s apiextensions.JSONSchemaProps, visit func(string, apiextensions.JSONSchemaProps)) {
	visit(path, s)
	for name, p := range s.Properties {
		walk(path+"."+name, p, visit)
	}
	if s.Items != nil && s.Items.Schema != nil {
		for name, p := range s.Items.Schema.Properties {
			walk(path+"[]."+name, p, visit)
		}
	}
}

// TestObjects shows what the API server accepts and refuses, also of changes.
func TestObjects(t *testing.T) {
	known := crds(t)
	site := func(spec string) string { return "kind: RemoteSite\nmetadata: {name: site-b}\nspec: " + spec }
	group := func(spec string) string { return "kind: ConsistencyGroup\nmetadata: {name: shop}\nspec: " + spec }
	action := func(spec string) string { return "kind: GroupAction\nmetadata: {name: f}\nspec: " + spec }
	for name, tc := range map[string]struct{ object, old, refused string }{
		"site without anything": {object: site(`{}`)},
		"site": {object: site(`{namespaces: {matchLabels: {a: b}}, address: "b.example.org:9443", ` +
			`defaults: {rpoTarget: 30s, journalSize: 2Gi, journalFull: Stall, shipRate: 20Mi}, ` +
			`accept: {namespaces: ["*"], claims: Reserve}, map: {namespaces: [{remote: shop, local: shop-b}]}}`)},
		"address without a port": {object: site(`{address: b.example.org}`), refused: "spec.address"},
		"target in words":        {object: site(`{defaults: {rpoTarget: soon}}`), refused: "rpoTarget"},
		"negative target":        {object: site(`{defaults: {rpoTarget: -1s}}`), refused: "0s to 720h"},
		"small journal":          {object: site(`{defaults: {journalSize: 1Mi}}`), refused: "at least 16Mi"},
		"small journal, number":  {object: site(`{defaults: {journalSize: 1000}}`), refused: "at least 16Mi"},
		"no rate":                {object: site(`{defaults: {shipRate: 0}}`)},
		"small rate":             {object: site(`{defaults: {shipRate: 1Ki}}`), refused: "at least 64Ki"},
		"accept nothing by name": {object: site(`{accept: {namespaces: []}}`), refused: "accept.namespaces"},
		"accept a strange name":  {object: site(`{accept: {namespaces: [Shop_1]}}`), refused: "accept.namespaces"},
		"what is made":           {object: site(`{accept: {namespaces: [a], claims: Some}}`), refused: "claims"},
		"two maps of one name": {object: site(`{map: {namespaces: [{remote: a, local: b}, {remote: a, local: c}]}}`),
			refused: "Duplicate"},
		"long name of a site": {object: "kind: RemoteSite\nmetadata: {name: " + strings.Repeat("a", 64) + "}\nspec: {}",
			refused: "at most 63"},
		"group":                  {object: group(`{remoteSite: site-b, claims: {matchLabels: {app: shop}}}`)},
		"group without a remote": {object: group(`{}`), refused: "remoteSite"},
		"remote in capitals":     {object: group(`{remoteSite: Site}`), refused: "remoteSite"},
		"policy":                 {object: group(`{remoteSite: b, deletionPolicy: Burn}`), refused: "deletionPolicy"},
		"another remote":         {object: group(`{remoteSite: c}`), old: group(`{remoteSite: b}`)},
		"failover":               {object: action(`{group: shop, type: Failover}`)},
		"force":                  {object: action(`{group: shop, type: Failover, force: true, confirm: abc}`)},
		"force of a demotion": {object: action(`{group: shop, type: Demote, force: true, confirm: a}`), refused: "force " +
			"is for"},
		"force without confirm": {object: action(`{group: shop, type: Failover, force: true}`), refused: "confirm"},
		"unknown action":        {object: action(`{group: shop, type: Explode}`), refused: "type"},
		"a changed action": {object: action(`{group: shop, type: Failover, force: true, confirm: a}`),
			old: action(`{group: shop, type: Failover}`), refused: "run once"},
		"an unchanged action": {object: action(`{group: shop, type: Failover}`),
			old: action(`{group: shop, type: Failover}`)},
		"an unknown field": {object: group(`{remoteSite: b, role: Primary}`), refused: "unknown field"},
	} {
		t.Run(name, func(t *testing.T) {
			errs := validate(t, known, tc.object, tc.old)
			text := ""
			if len(errs) > 0 {
				text = errs.ToAggregate().Error()
			}
			if (tc.refused == "") != (text == "") || !strings.Contains(text, tc.refused) {
				t.Errorf("refused: %q, want %q", text, tc.refused)
			}
		})
	}
}

// validate does what the API server does with strict field validation.
func validate(t *testing.T, known map[string]*apiextensions.CustomResourceDefinition,
	object, old string) field.ErrorList {
	t.Helper()
	parse := func(text string) map[string]any {
		asJSON, err := yaml.YAMLToJSON([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		o := map[string]any{}
		if err := utiljson.Unmarshal(asJSON, &o); err != nil { // whole numbers stay whole
			t.Fatal(err)
		}
		return o
	}
	o := parse(object)
	crd := known[o["kind"].(string)]
	props := crd.Spec.Validation
	if props == nil {
		props = crd.Spec.Versions[0].Schema
	}
	structural, err := schema.NewStructural(props.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	validator, _, err := validation.NewSchemaValidator(props.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	var errs field.ErrorList
	if unknown := pruning.PruneWithOptions(parse(object), structural, true,
		schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}); len(unknown) > 0 {
		errs = append(errs, field.Invalid(nil, unknown, "unknown field"))
	}
	errs = append(errs, validation.ValidateCustomResource(nil, o, validator)...)
	if len(errs) > 0 { // as there: rules see objects of the right form only
		return errs
	}
	errs = append(errs, listErrors(structural, o)...)
	var previous any
	if old != "" {
		previous = parse(old)
	}
	rules, _ := cel.NewValidator(structural, true, celconfig.PerCallLimit).Validate(context.Background(), nil, structural,
		o, previous, celconfig.RuntimeCELCostBudget)
	return append(errs, rules...)
}

func listErrors(structural *schema.Structural, o map[string]any) field.ErrorList {
	return listtype.ValidateListSetsAndMaps(nil, structural, o)
}
