package demo

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/testbrowser"
)

// The page can be read on a telephone and on a desk: it is not wider than the screen, no text lies over another, and
// its texts are large enough and stand out from what is behind them. A dark screen gets dark colours.
func TestPage(t *testing.T) {
	browser := testbrowser.Open(t)
	results := measured()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := results.page().Write(w); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	backgrounds := map[bool]string{}
	for _, view := range testbrowser.Views() {
		t.Run(view.String(), func(t *testing.T) {
			p := browser.Look(t, server.URL, view, "document.readyState === 'complete'", "demo")
			p.Check(t)
			if !strings.Contains(p.Text, "Slipstream: losing a site") {
				t.Errorf("the page shows\n%s", p.Text)
			}
			backgrounds[view.Dark] = p.Background
		})
	}
	if backgrounds[true] == backgrounds[false] {
		t.Errorf("light and dark have the same background %s", backgrounds[true])
	}
}
