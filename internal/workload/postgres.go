package workload

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// postgresShop is two servers, and for each client a connection to each of them.
type postgresShop struct {
	servers []*pgServer
	clients []postgresClient
}

type postgresClient struct{ stock, sales *pgx.Conn }

const (
	postgresStockSchema = `
CREATE TABLE IF NOT EXISTS stock (item int PRIMARY KEY, quantity bigint NOT NULL);
CREATE TABLE IF NOT EXISTS movement (order_id bigint PRIMARY KEY, item int NOT NULL, quantity int NOT NULL);
`
	postgresSalesSchema = `
CREATE TABLE IF NOT EXISTS orders (id bigint PRIMARY KEY, item int NOT NULL, quantity int NOT NULL,
	details text NOT NULL);
`
	// One statement is one transaction, and one round trip.
	postgresTakeStock = `WITH m AS (INSERT INTO movement VALUES ($1, $2, $3)) ` +
		`UPDATE stock SET quantity = quantity - $3 WHERE item = $2`
	postgresAddOrder = `INSERT INTO orders VALUES ($1, $2, $3, $4)`
)

func openPostgres(ctx context.Context, dirs Dirs, clients int) (_ *postgresShop, err error) {
	s := &postgresShop{}
	defer func() {
		if err != nil {
			_ = s.Close() // the error that matters is the one being returned
		}
	}()
	for _, db := range []struct{ name, volume, schema string }{
		{"stock", dirs.Stock, postgresStockSchema},
		{"sales", dirs.Sales, postgresSalesSchema},
	} {
		server, err := startPostgres(ctx, db.name, db.volume, dirs.Run)
		if err != nil {
			return nil, err
		}
		s.servers = append(s.servers, server)
		if err := createPostgresSchema(ctx, server, db.schema); err != nil {
			return nil, err
		}
	}
	for range max(clients, 1) {
		var c postgresClient
		if c.stock, err = s.servers[0].connect(ctx); err != nil {
			return nil, fmt.Errorf("connecting to stock: %w", err)
		}
		if c.sales, err = s.servers[1].connect(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("connecting to sales: %w", err), c.stock.Close(ctx))
		}
		s.clients = append(s.clients, c)
	}
	fill := `INSERT INTO stock SELECT i, $2 FROM generate_series(0, $1 - 1) AS i WHERE NOT EXISTS (SELECT 1 FROM stock)`
	if _, err := s.clients[0].stock.Exec(ctx, fill, items, initialQuantity); err != nil {
		return nil, fmt.Errorf("filling the stock: %w", err)
	}
	return s, nil
}

func createPostgresSchema(ctx context.Context, server *pgServer, schema string) error {
	conn, err := server.connect(ctx)
	if err != nil {
		return fmt.Errorf("connecting to %s: %w", server.name, err)
	}
	_, err = conn.Exec(ctx, schema)
	if err := errors.Join(err, conn.Close(ctx)); err != nil {
		return fmt.Errorf("creating the tables of %s: %w", server.name, err)
	}
	return nil
}

func (s *postgresShop) Place(ctx context.Context, client int, o Order) error {
	c := s.clients[client]
	if _, err := c.stock.Exec(ctx, postgresTakeStock, o.ID, o.Item, o.Quantity); err != nil {
		return fmt.Errorf("order %d, stock: %w", o.ID, err)
	}
	if _, err := c.sales.Exec(ctx, postgresAddOrder, o.ID, o.Item, o.Quantity, o.Details); err != nil {
		return fmt.Errorf("order %d, sales: %w", o.ID, err)
	}
	return nil
}

func (s *postgresShop) Read(ctx context.Context) (Contents, error) {
	var c Contents
	client := s.clients[0]
	for _, db := range []struct {
		name   string
		conn   *pgx.Conn
		tables []string
	}{{"stock", client.stock, []string{"stock", "movement"}}, {"sales", client.sales, []string{"orders"}}} {
		for _, table := range db.tables {
			if err := checkPostgresTable(ctx, db.conn, table); err != nil {
				c.Damage = append(c.Damage, fmt.Sprintf("%s database, table %s: %v", db.name, table, err))
			}
		}
	}
	var err error
	if c.Movements, err = postgresNumbers(ctx, client.stock, `SELECT order_id FROM movement ORDER BY 1`); err != nil {
		return c, fmt.Errorf("reading movements: %w", err)
	}
	if c.Orders, err = postgresNumbers(ctx, client.sales, `SELECT id FROM orders ORDER BY 1`); err != nil {
		return c, fmt.Errorf("reading orders: %w", err)
	}
	row := client.stock.QueryRow(ctx,
		`SELECT (SELECT SUM($1::bigint - quantity)::bigint FROM stock), `+
			`(SELECT COALESCE(SUM(quantity), 0)::bigint FROM movement)`, initialQuantity)
	if err := row.Scan(&c.Taken, &c.MovedOut); err != nil {
		return c, fmt.Errorf("summing up the stock: %w", err)
	}
	return c, nil
}

// checkPostgresTable reads a table and its index in full, each page with its checksum, and compares the two.
func checkPostgresTable(ctx context.Context, conn *pgx.Conn, table string) error {
	if _, err := conn.Exec(ctx, `CREATE EXTENSION IF NOT EXISTS amcheck`); err != nil {
		return err
	}
	// The argument true makes it verify that every row of the table is in the index.
	_, err := conn.Exec(ctx,
		`SELECT bt_index_check(indexrelid, true) FROM pg_index WHERE indrelid = $1::text::regclass`, table)
	return err
}

func postgresNumbers(ctx context.Context, conn *pgx.Conn, query string) ([]int64, error) {
	rows, err := conn.Query(ctx, query)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

func (s *postgresShop) Close() error {
	// The clients' context may be over when the shop is closed; saying goodbye needs none of its own but a bound.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var errs []error
	for _, c := range s.clients {
		// A connection that broke is closed all the same.
		_ = c.stock.Close(ctx)
		_ = c.sales.Close(ctx)
	}
	for _, server := range s.servers {
		errs = append(errs, server.stop())
	}
	return errors.Join(errs...)
}
