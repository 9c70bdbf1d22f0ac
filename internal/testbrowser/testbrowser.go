// Package testbrowser opens pages in headless Chromium, for tests of what people see. A test is skipped where Chromium
// is not installed: it is large, so no target but `make test-pages` installs it.
package testbrowser

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/slipstream-storage/slipstream/internal/pause"
)

// ScreenshotsEnv names a directory for screenshots.
const ScreenshotsEnv = "SLIPSTREAM_SCREENSHOTS"

// pageTimeout bounds everything with one page.
const pageTimeout = 2 * time.Minute

// Browser is a running Chromium.
type Browser struct{ ctx context.Context }

// Open starts Chromium for a test, which it skips if Chromium is not installed.
func Open(t *testing.T) *Browser {
	t.Helper()
	var program string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			program = path
			break
		}
	}
	if program == "" {
		t.Skip("Chromium is not installed; make test-pages installs it on Debian")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.NoSandbox,
		chromedp.WSURLReadTimeout(pageTimeout))
	allocator, cancelAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() { cancel(); cancelAllocator() })
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("Chromium: %v", err)
	}
	return &Browser{ctx}
}

// View is how a page is looked at.
type View struct {
	Width, Height int64
	Dark          bool
}

func (v View) String() string {
	scheme := "light"
	if v.Dark {
		scheme = "dark"
	}
	return fmt.Sprintf("%d-%s", v.Width, scheme)
}

// Views are those that every page is tested in.
func Views() []View {
	return []View{{400, 800, false}, {400, 800, true}, {1280, 900, false}, {1280, 900, true}}
}

// Page is what a page shows in one view.
type Page struct {
	// Complaints are messages of its console, errors, refused and failed loads.
	Complaints []string
	// Requests are the addresses that it loaded.
	Requests []string
	// Wider is by how many pixels it is wider than the view.
	Wider int
	// Overlaps are pairs of texts that lie over each other, and texts that are cut off.
	Overlaps []string
	// Background is the colour behind the page, as CSS has it.
	Background string
	// Smallest is the size of the smallest letters in pixels, those of drawings as they are scaled.
	Smallest float64
	// Faint are texts that hardly stand out from what is behind them, with their contrast.
	Faint []string
	Text  string
}

// overlaps is run in the page. It compares the boxes of all lines of all texts, those of drawings too. A text in
// something that scrolls is compared only where it is shown.
const overlaps = `(() => {
  const boxes = [], found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n; (n = walker.nextNode());) {
    const text = n.textContent.trim(), style = getComputedStyle(n.parentElement);
    if (!text || style.visibility === "hidden" || !n.parentElement.checkVisibility()) continue;
    let clip = null;
    for (let e = n.parentElement; e; e = e.parentElement) {
      const s = getComputedStyle(e);
      if (e === document.body || e === document.documentElement) break;
      if (s.overflowX !== "visible") { clip = e.getBoundingClientRect(); break; }
    }
    const range = document.createRange();
    range.selectNodeContents(n);
    for (const r of range.getClientRects()) {
      let left = r.left, right = r.right;
      if (clip) { left = Math.max(left, clip.left); right = Math.min(right, clip.right); }
      if (right - left < 1 || r.height < 1) continue;
      // A line's box is higher than its letters.
      const inset = r.height * 0.2;
      boxes.push({text, node: n, left, right, top: r.top + inset, bottom: r.bottom - inset});
      if (!clip && (left < -1 || right > document.documentElement.clientWidth + 1)) found.push("cut off: " + text);
    }
  }
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const a = boxes[i], b = boxes[j];
    if (a.node === b.node) continue;
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1 && high > 1)
      found.push(a.text.slice(0, 60) + " / " + b.text.slice(0, 60));
  }
  return found;
})()`

// smallest is run in the page. A drawing scales its letters.
const smallest = `(() => {
  let least = 1000;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n; (n = walker.nextNode());) {
    const e = n.parentElement;
    if (!n.textContent.trim() || !e.checkVisibility()) continue;
    const m = e.getScreenCTM ? e.getScreenCTM() : {b: 0, d: 1};
    const scale = Math.hypot(m.b, m.d); // of a turned letter, too
    least = Math.min(least, scale * parseFloat(getComputedStyle(e).fontSize));
  }
  return least;
})()`

// faint is run in the page. Contrast is that of WCAG; 4.5 is what it asks of small letters.
const faint = `(() => {
  const parse = (c) => { const m = c.match(/[0-9.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const light = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n; (n = walker.nextNode());) {
    const e = n.parentElement;
    if (!n.textContent.trim() || !e.checkVisibility()) continue;
    const style = getComputedStyle(e);
    const ink = parse(e instanceof SVGElement ? style.fill : style.color);
    let behind = [255, 255, 255, 1];
    for (let p = e; p; p = p.parentElement) {
      const c = parse(getComputedStyle(p).backgroundColor);
      if (c[3] > 0) { behind = c; break; }
    }
    const [a, b] = [light(ink), light(behind)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.push(n.textContent.trim().slice(0, 60) + ": " + contrast.toFixed(1));
  }
  return found;
})()`

// Look opens a page in a view, waits until ready, a JavaScript expression, is true, and reports what it shows.
// screenshot is the name of a file without its ending.
func (b *Browser) Look(t *testing.T, address string, view View, ready, screenshot string) Page {
	t.Helper()
	tab, closeTab := chromedp.NewContext(b.ctx)
	defer closeTab()
	ctx, cancel := context.WithTimeout(tab, pageTimeout)
	defer cancel()
	var p Page
	var mu sync.Mutex
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s, %v: %s: %v", address, view, what, err)
		}
	}
	must("listen", chromedp.Listen(ctx, func(event any) {
		mu.Lock()
		defer mu.Unlock()
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			p.Requests = append(p.Requests, e.Request.URL)
		case *network.EventLoadingFailed:
			p.Complaints = append(p.Complaints, "load: "+e.ErrorText)
		case *cdplog.EventEntryAdded:
			p.Complaints = append(p.Complaints, e.Entry.Text)
		case *cdpruntime.EventExceptionThrown:
			p.Complaints = append(p.Complaints, e.ExceptionDetails.Text)
		}
	}))
	scheme := "light"
	if view.Dark {
		scheme = "dark"
	}
	_, err := chromedp.Call(ctx, network.Enable, network.EnableParams{})
	must("network", err)
	_, err = chromedp.Call(ctx, cdplog.Enable, cdp.Empty{})
	must("log", err)
	_, err = chromedp.Call(ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: view.Width, Height: view.Height, DeviceScaleFactor: 1, Mobile: view.Width < 600})
	must("size", err)
	_, err = chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	must("colours", err)
	must("open", chromedp.Do(ctx, chromedp.Navigate(address)))
	for {
		is, err := chromedp.Run(ctx, chromedp.Evaluate[bool](ready))
		must(ready, err)
		if is {
			break
		}
		if !pause.For(ctx, 50*time.Millisecond) {
			t.Fatalf("%s, %v: %s is not true in time", address, view, ready)
		}
	}
	p.Overlaps, err = chromedp.Run(ctx, chromedp.Evaluate[[]string](overlaps))
	must("overlaps", err)
	p.Wider, err = chromedp.Run(ctx, chromedp.Evaluate[int](
		"document.documentElement.scrollWidth - document.documentElement.clientWidth"))
	must("width", err)
	p.Smallest, err = chromedp.Run(ctx, chromedp.Evaluate[float64](smallest))
	must("smallest letters", err)
	p.Faint, err = chromedp.Run(ctx, chromedp.Evaluate[[]string](faint))
	must("contrast", err)
	p.Background, err = chromedp.Run(ctx, chromedp.Evaluate[string]("getComputedStyle(document.body).backgroundColor"))
	must("background", err)
	p.Text, err = chromedp.Run(ctx, chromedp.Evaluate[string]("document.body.innerText"))
	must("text", err)
	picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	must("screenshot", err)
	if dir := os.Getenv(ScreenshotsEnv); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, screenshot+"-"+view.String()+".png"), picture, 0o644); err != nil {
			t.Error(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	return p
}

// legible is the least size of letters in pixels.
const legible = 9.5

// Check fails the test if the page complains, is wider than its view, has texts over each other, or texts that are too
// small.
func (p Page) Check(t *testing.T) {
	t.Helper()
	for _, c := range p.Complaints {
		t.Errorf("the page complains: %s", c)
	}
	for _, o := range p.Overlaps {
		t.Errorf("texts overlap: %s", o)
	}
	for _, f := range p.Faint {
		t.Errorf("the contrast of a text is less than 4.5: %s", f)
	}
	if p.Smallest < legible {
		t.Errorf("the smallest letters have %.1f pixels, want %v", p.Smallest, legible)
	}
	if p.Wider > 0 {
		t.Errorf("the page is %d pixels wider than its view", p.Wider)
	}
}
