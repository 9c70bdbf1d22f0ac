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
	mu           sync.Mutex // clients take turns
	stock, sales *sql.DB
	addMovement  *sql.Stmt
	takeStock    *sql.Stmt
	addOrder     *sql.Stmt
}

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

func openSQLite(ctx context.Context, dirs Dirs) (_ *sqliteShop, err error) {
	s := &sqliteShop{}
	defer func() {
		if err != nil {
			_ = s.Close() // the error that matters is the one being returned
		}
	}()
	if s.stock, err = openSQLiteFile(ctx, filepath.Join(dirs.Stock, "stock.db"), sqliteStockSchema); err != nil {
		return nil, err
	}
	fill := `WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?)
INSERT INTO stock SELECT i, ? FROM n WHERE NOT EXISTS (SELECT 1 FROM stock)`
	if _, err = s.stock.ExecContext(ctx, fill, items, initialQuantity); err != nil {
		return nil, fmt.Errorf("filling the stock: %w", err)
	}
	if s.sales, err = openSQLiteFile(ctx, filepath.Join(dirs.Sales, "sales.db"), sqliteSalesSchema); err != nil {
		return nil, err
	}
	prepare := func(db *sql.DB, query string) (stmt *sql.Stmt) {
		if err == nil {
			stmt, err = db.PrepareContext(ctx, query)
		}
		return stmt
	}
	s.addMovement = prepare(s.stock, `INSERT INTO movement VALUES (?, ?, ?)`)
	s.takeStock = prepare(s.stock, `UPDATE stock SET quantity = quantity - ? WHERE item = ?`)
	s.addOrder = prepare(s.sales, `INSERT INTO orders VALUES (?, ?, ?, ?)`)
	if err != nil {
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
	tx, err := s.stock.BeginTx(ctx, nil)
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
	}{{"stock", s.stock}, {"sales", s.sales}} {
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
	if c.Movements, err = sqliteColumn[int64](ctx, s.stock,
		`SELECT order_id FROM movement ORDER BY order_id`); err != nil {
		return c, fmt.Errorf("reading movements: %w", err)
	}
	if c.Orders, err = sqliteColumn[int64](ctx, s.sales, `SELECT id FROM orders ORDER BY id`); err != nil {
		return c, fmt.Errorf("reading orders: %w", err)
	}
	row := s.stock.QueryRowContext(ctx,
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

func (s *sqliteShop) Close() error {
	var errs []error
	for _, stmt := range []*sql.Stmt{s.addMovement, s.takeStock, s.addOrder} {
		if stmt != nil {
			errs = append(errs, stmt.Close())
		}
	}
	for _, db := range []*sql.DB{s.stock, s.sales} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}
