package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
)

// A shop whose databases are on two machines: ServeStock has the stock database, and a SalesShop asks it for the
// movement of each order before it writes the order to its own database. Both are SQLite.

// movementPath is where ServeStock takes movements.
const movementPath = "/movement"

// ServeStock takes movements on a listener and commits them to the stock database in a directory, until ctx ends. It
// answers when a movement is durable. It closes the listener.
func ServeStock(ctx context.Context, dir string, lis net.Listener) error {
	stock, err := openSQLiteStock(ctx, dir)
	if err != nil {
		return errors.Join(err, lis.Close())
	}
	var mu sync.Mutex // of stock
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+movementPath, func(w http.ResponseWriter, r *http.Request) {
		var o Order
		if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		// A movement that has begun ends, although the caller is gone.
		if err := stock.move(context.WithoutCancel(r.Context()), o); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	server := &http.Server{Handler: mux}
	ended := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() { ended <- server.Shutdown(context.WithoutCancel(ctx)) })
	err = server.Serve(lis)
	if errors.Is(err, http.ErrServerClosed) {
		err = <-ended
	}
	stop()
	return errors.Join(err, stock.close())
}

// SalesShop is the sales database of a shop whose stock is elsewhere.
type SalesShop struct {
	sales  *sqliteSales
	url    string
	client *http.Client
}

// OpenSales opens the sales database in a directory, for one client. stock is the address of ServeStock.
func OpenSales(ctx context.Context, dir, stock string) (*SalesShop, error) {
	sales, err := openSQLiteSales(ctx, dir)
	if err != nil {
		return nil, err
	}
	return &SalesShop{sales: sales, url: "http://" + stock + movementPath,
		client: &http.Client{Transport: &http.Transport{}}}, nil
}

// Place has the stock commit the movement of an order, and commits the order.
func (s *SalesShop) Place(ctx context.Context, _ int, o Order) error {
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(text))
	if err != nil {
		return err
	}
	response, err := s.client.Do(request)
	if err != nil {
		return fmt.Errorf("order %d, stock: %w", o.ID, err)
	}
	answer, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return fmt.Errorf("order %d, stock: %w", o.ID, err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("order %d, stock: %s: %s", o.ID, response.Status, bytes.TrimSpace(answer))
	}
	return s.sales.add(ctx, o)
}

// Close closes the database.
func (s *SalesShop) Close() error {
	s.client.CloseIdleConnections()
	return s.sales.close()
}
