package workload

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"sync"

	_ "modernc.org/sqlite" // the database/sql driver
)

// sqliteShop has one connection per database, because SQLite has one writer.
//
// Journal mode WAL with synchronous=FULL: a commit appends to one file and syncs it, which is what applications use
// that care for speed, and recovery depends on the order between the write-ahead log and the database file, which is
// what a copy could get wrong. The rollback journal (DELETE) would sync up to four times per commit and measure the
// file system's own journal instead.
type sqliteShop struct {
	mu    sync.Mutex // clients take turns
	stock *sqliteStock
	sales *sqliteSales
}

// sqliteStock and sqliteSales are the two databases. Their methods do not overlap.
type (
	sqliteStock struct {
		db                     *sql.DB
		addMovement, takeStock *sql.Stmt
	}
	sqliteSales struct {
		db       *sql.DB
		addOrder *sql.Stmt
	}
)

const (
	sqliteStockSchema = `
CREATE TABLE IF NOT EXISTS stock (item INTEGER PRIMARY KEY, quantity INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS movement (order_id INTEGER PRIMARY KEY, item INTEGER NOT NULL, quantity INTEGER NOT NULL);
`
	sqliteSalesSchema = `
CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item INTEGER NOT NULL, quantity INTEGER NOT NULL,
	details TEXT NOT NULL);
`
)

func openSQLite(ctx context.Context, dirs Dirs) (*sqliteShop, error) {
	stock, err := openSQLiteStock(ctx, dirs.Stock)
	if err != nil {
		return nil, err
	}
	sales, err := openSQLiteSales(ctx, dirs.Sales)
	if err != nil {
		return nil, errors.Join(err, stock.close())
	}
	return &sqliteShop{stock: stock, sales: sales}, nil
}

func openSQLiteStock(ctx context.Context, dir string) (_ *sqliteStock, err error) {
	s := &sqliteStock{}
	defer func() {
		if err != nil {
			_ = s.close() // the error that matters is the one being returned
		}
	}()
	if s.db, err = openSQLiteFile(ctx, filepath.Join(dir, "stock.db"), sqliteStockSchema); err != nil {
		return nil, err
	}
	fill := `WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?)
INSERT INTO stock SELECT i, ? FROM n WHERE NOT EXISTS (SELECT 1 FROM stock)`
	if _, err = s.db.ExecContext(ctx, fill, items, initialQuantity); err != nil {
		return nil, fmt.Errorf("filling the stock: %w", err)
	}
	if s.addMovement, err = s.db.PrepareContext(ctx, `INSERT INTO movement VALUES (?, ?, ?)`); err == nil {
		s.takeStock, err = s.db.PrepareContext(ctx, `UPDATE stock SET quantity = quantity - ? WHERE item = ?`)
	}
	if err != nil {
		return nil, fmt.Errorf("preparing statements: %w", err)
	}
	return s, nil
}

func openSQLiteSales(ctx context.Context, dir string) (_ *sqliteSales, err error) {
	s := &sqliteSales{}
	defer func() {
		if err != nil {
			_ = s.close() // the error that matters is the one being returned
		}
	}()
	if s.db, err = openSQLiteFile(ctx, filepath.Join(dir, "sales.db"), sqliteSalesSchema); err != nil {
		return nil, err
	}
	if s.addOrder, err = s.db.PrepareContext(ctx, `INSERT INTO orders VALUES (?, ?, ?, ?)`); err != nil {
		return nil, fmt.Errorf("preparing statements: %w", err)
	}
	return s, nil
}

func openSQLiteFile(ctx context.Context, path, schema string) (*sql.DB, error) {
	query := url.Values{"_pragma": {"journal_mode(WAL)", "synchronous(FULL)", "busy_timeout(10000)"},
		"_txlock": {"immediate"}}
	db, err := sql.Open("sqlite", "file:"+path+"?"+query.Encode())
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", path, err), db.Close())
	}
	return db, nil
}

func (s *sqliteShop) Place(ctx context.Context, _ int, o Order) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.stock.move(ctx, o); err != nil {
		return err
	}
	return s.sales.add(ctx, o)
}

// move commits an order's movement.
func (s *sqliteStock) move(ctx context.Context, o Order) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("order %d, stock: %w", o.ID, err)
	}
	if _, err = tx.StmtContext(ctx, s.addMovement).ExecContext(ctx, o.ID, o.Item, o.Quantity); err == nil {
		_, err = tx.StmtContext(ctx, s.takeStock).ExecContext(ctx, o.Quantity, o.Item)
	}
	if err != nil {
		return fmt.Errorf("order %d, stock: %w", o.ID, errors.Join(err, tx.Rollback()))
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("order %d, stock: commit: %w", o.ID, err)
	}
	return nil
}

// add commits an order.
func (s *sqliteSales) add(ctx context.Context, o Order) error {
	if _, err := s.addOrder.ExecContext(ctx, o.ID, o.Item, o.Quantity, o.Details); err != nil {
		return fmt.Errorf("order %d, sales: %w", o.ID, err)
	}
	return nil
}

func (s *sqliteShop) Read(ctx context.Context) (Contents, error) {
	var c Contents
	for _, db := range []struct {
		name string
		db   *sql.DB
	}{{"stock", s.stock.db}, {"sales", s.sales.db}} {
		findings, err := sqliteColumn[string](ctx, db.db, `PRAGMA integrity_check`)
		if err != nil {
			// SQLite reports gross damage as an error of the check itself.
			c.Damage = append(c.Damage, fmt.Sprintf("%s database: %v", db.name, err))
			continue
		}
		for _, finding := range findings {
			if finding != "ok" {
				c.Damage = append(c.Damage, fmt.Sprintf("%s database: %s", db.name, finding))
			}
		}
	}
	var err error
	if c.Movements, err = sqliteColumn[int64](ctx, s.stock.db,
		`SELECT order_id FROM movement ORDER BY order_id`); err != nil {
		return c, fmt.Errorf("reading movements: %w", err)
	}
	if c.Orders, err = sqliteColumn[int64](ctx, s.sales.db, `SELECT id FROM orders ORDER BY id`); err != nil {
		return c, fmt.Errorf("reading orders: %w", err)
	}
	row := s.stock.db.QueryRowContext(ctx,
		`SELECT (SELECT SUM(? - quantity) FROM stock), (SELECT COALESCE(SUM(quantity), 0) FROM movement)`, initialQuantity)
	if err := row.Scan(&c.Taken, &c.MovedOut); err != nil {
		return c, fmt.Errorf("summing up the stock: %w", err)
	}
	return c, nil
}

func sqliteColumn[T any](ctx context.Context, db *sql.DB, query string) ([]T, error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var values []T
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, rows.Err()
}

func (s *sqliteShop) Close() error { return errors.Join(s.stock.close(), s.sales.close()) }

func (s *sqliteStock) close() error { return closeSQLite(s.db, s.addMovement, s.takeStock) }

func (s *sqliteSales) close() error { return closeSQLite(s.db, s.addOrder) }

func closeSQLite(db *sql.DB, statements ...*sql.Stmt) error {
	var errs []error
	for _, stmt := range statements {
		if stmt != nil {
			errs = append(errs, stmt.Close())
		}
	}
	if db != nil {
		errs = append(errs, db.Close())
	}
	return errors.Join(errs...)
}
