// Package schedule says which rate a link has at which time of day.
//
// A schedule is text, as people write it and as group.json keeps it: parts that are separated by commas.
//
//	08:00-18:00=20MiB      from 8 to 18 o'clock at most 20 MiB a second
//	22:00-06:00=unlimited  over midnight, without a bound
//	*=100MiB               at all other times
//	zone=Europe/Berlin     the times are of this zone; without it they are of the zone of the machine
//
// A window includes its beginning and excludes its end. Windows do not overlap. Without "*" the caller's own rate holds
// outside of all windows. The package reads no clock. Times are wall-clock times: a window follows changes to and from
// summer time.
package schedule

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/slipstream-storage/slipstream/internal/words"
)

const (
	minutesOfDay = 24 * 60
	// maxTextBytes and maxWindows bound what a setting can make this site keep.
	maxTextBytes = 1024
	maxWindows   = 48
	// MinBytesPerSecond is the least rate of a window.
	MinBytesPerSecond = 64 << 10
	// Unlimited is the word for no bound; it is the rate 0.
	Unlimited = "unlimited"
)

// Schedule has the rates of a day. The zero value has none. It is not changed after Parse.
type Schedule struct {
	windows []window
	rest    *int64
	zone    *time.Location // nil: the zone of the time that is asked for
}

// window is from one minute of the day to another; over midnight if from is behind to.
type window struct {
	from, to       int
	bytesPerSecond int64
}

func (w window) has(minute int) bool {
	if w.from < w.to {
		return minute >= w.from && minute < w.to
	}
	return minute >= w.from || minute < w.to
}

// Parse reads a schedule. Empty text is a schedule without windows. Errors name the part that is wrong.
func Parse(text string) (Schedule, error) {
	var s Schedule
	if text == "" {
		return s, nil
	}
	if len(text) > maxTextBytes {
		return s, fmt.Errorf("schedule of %s, the limit is %d", words.Count(len(text), "byte"), maxTextBytes)
	}
	for _, part := range strings.Split(text, ",") {
		if err := s.add(strings.TrimSpace(part)); err != nil {
			return Schedule{}, fmt.Errorf("schedule part %.80q: %w", part, err)
		}
	}
	if len(s.windows) == 0 && s.rest == nil {
		return Schedule{}, fmt.Errorf("schedule %.80q has no window such as 08:00-18:00=20MiB", text)
	}
	return s, nil
}

func (s *Schedule) add(part string) error {
	when, value, ok := strings.Cut(part, "=")
	if !ok {
		return fmt.Errorf("want FROM-TO=RATE, *=RATE or zone=NAME")
	}
	if when == "zone" {
		if s.zone != nil {
			return fmt.Errorf("there is a zone already")
		}
		if value == "" || value == "Local" { // which LoadLocation takes for other zones
			return fmt.Errorf("want the name of a time zone such as Europe/Berlin or UTC")
		}
		zone, err := time.LoadLocation(value)
		if err != nil {
			return fmt.Errorf("no time zone %.80q is known here", value)
		}
		s.zone = zone
		return nil
	}
	rate, err := parseRate(value)
	if err != nil {
		return err
	}
	if when == "*" {
		if s.rest != nil {
			return fmt.Errorf("there is a rate for all other times already")
		}
		s.rest = &rate
		return nil
	}
	begin, end, ok := strings.Cut(when, "-")
	if !ok {
		return fmt.Errorf("want a window such as 08:00-18:00")
	}
	w := window{bytesPerSecond: rate}
	if w.from, err = parseMinute(begin); err == nil {
		w.to, err = parseMinute(end)
	}
	switch {
	case err != nil:
		return err
	case w.from == minutesOfDay:
		return fmt.Errorf("a window begins at 23:59 at the latest")
	case w.from == w.to:
		return fmt.Errorf("the window is empty; *=RATE is for the whole day")
	case len(s.windows) == maxWindows:
		return fmt.Errorf("there are %s already", words.Count(maxWindows, "window"))
	}
	for _, other := range s.windows {
		if other.has(w.from) || w.has(other.from) {
			return fmt.Errorf("it overlaps with another window")
		}
	}
	s.windows = append(s.windows, w)
	return nil
}

// parseMinute reads a time of day as a minute of it. 24:00 is the end of the day.
func parseMinute(text string) (int, error) {
	hours, minutes, ok := strings.Cut(text, ":")
	h, errH := strconv.ParseUint(hours, 10, 8)
	m, errM := strconv.ParseUint(minutes, 10, 8)
	at := int(h*60 + m)
	if !ok || errH != nil || errM != nil || len(hours) != 2 || len(minutes) != 2 || m > 59 || at > minutesOfDay {
		return 0, fmt.Errorf("%.20q is not a time of day such as 08:30", text)
	}
	return at, nil
}

var units = []struct {
	suffix string
	factor int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"", 1}}

func parseRate(text string) (int64, error) {
	if text == Unlimited {
		return 0, nil
	}
	for _, u := range units {
		digits, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 63)
		if err != nil || int64(n) > math.MaxInt64/u.factor {
			break
		}
		if rate := int64(n) * u.factor; rate >= MinBytesPerSecond {
			return rate, nil
		}
		return 0, fmt.Errorf("the rate %.40q is less than 64 KiB a second", text)
	}
	return 0, fmt.Errorf("%.40q is not a rate such as 20MiB, or %s", text, Unlimited)
}

// RateAt returns the rate at a time, in bytes a second; 0 is no bound. It is otherwise outside of all windows of a
// schedule that does not say what holds there.
func (s *Schedule) RateAt(t time.Time, otherwise int64) int64 {
	if s.zone != nil {
		t = t.In(s.zone)
	}
	minute := t.Hour()*60 + t.Minute()
	for _, w := range s.windows {
		if w.has(minute) {
			return w.bytesPerSecond
		}
	}
	if s.rest != nil {
		return *s.rest
	}
	return otherwise
}
