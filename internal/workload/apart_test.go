package workload

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"
)

// A shop whose databases are apart has the same order between them: each order has its movement.
func TestApart(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	dirs := testDirs(t)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stockCtx, stopStock := context.WithCancel(ctx)
	defer stopStock()
	ended := make(chan error, 1)
	go func() { ended <- ServeStock(stockCtx, dirs.Stock, lis) }()
	shop, err := OpenSales(ctx, dirs.Sales, lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	runCtx, stop := context.WithCancel(ctx)
	defer stop()
	var log bytes.Buffer
	logged := writerFunc(func(p []byte) (int, error) {
		if bytes.Count(log.Bytes(), []byte("\n")) >= 20 {
			stop()
		}
		return log.Write(p)
	})
	if err := Run(runCtx, shop, RunOptions{Clients: 1, FirstID: 1, Log: logged}); err != nil {
		t.Fatal(err)
	}
	stopStock()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	// Without its stock the shop sells nothing.
	if err := shop.Place(ctx, 0, Order{ID: 1000, Quantity: 1}); err == nil {
		t.Error("an order was placed without its stock")
	}
	if err := shop.Close(); err != nil {
		t.Fatal(err)
	}
	var acks []Ack
	if err := ReadAcks(&log, func(a Ack) { acks = append(acks, a) }); err != nil {
		t.Fatal(err)
	}
	result, err := Check(ctx, SQLite, dirs, acks, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := result.OneInstant(0); err != nil {
		t.Error(err)
	}
	if result.Orders < 20 || result.Orders != len(acks) || result.LostOrders != 0 {
		t.Errorf("%d acknowledged, result %+v", len(acks), result)
	}
}
