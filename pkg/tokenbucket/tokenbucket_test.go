package tokenbucket

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestBucket(t *testing.T) {
	const second = int64(time.Second)
	var b Bucket
	if w := b.Take(0, math.MaxInt64); w != 0 {
		t.Fatalf("a bucket without a bound makes wait for %v", w)
	}
	b.SetRate(0, 1000, 100*time.Millisecond)
	for _, step := range []struct {
		now, take int64
		want      time.Duration
	}{
		{0, 100, 0},                               // a tenth of a second is saved up
		{0, 50, 50 * time.Millisecond},            // not more
		{0, 1000, 1050 * time.Millisecond},        // larger than the bucket: charged, not refused
		{second, 0, 50 * time.Millisecond},        // nothing taken, still owed
		{100 * second, 100, 0},                    // idle for long, and yet one tenth
		{100 * second, 1, time.Millisecond},       //
		{99 * second, 1, 1002 * time.Millisecond}, // a clock that goes back
	} {
		if got := b.Take(step.now, step.take); got != step.want {
			t.Fatalf("%+v: %v", step, got)
		}
	}
	b.Take(200*second, 1100) // owes one second
	b.SetRate(200*second, 500, time.Millisecond)
	if got := b.Wait(200 * second); got != 2*time.Second {
		t.Fatalf("a debt of 1000 at 500 a second takes %v", got)
	}
	b.SetRate(200*second, 0, 0)
	if got := b.Take(200*second, 1); got != 0 {
		t.Fatal(got)
	}
	b.SetRate(200*second, 1, 0)
	for range 3 {
		b.Take(200*second, math.MaxInt64)
	}
	if got := b.Wait(200 * second); got <= 0 {
		t.Fatalf("an endless debt became %v", got)
	}
}

// The naive model has a level that fills with time. What it says about every take, the bucket says to within the
// rounding of its takes; and a caller that waits as told never gets more than rate*time + burst, nor is made to wait
// without owing.
func TestBucketAgainstLevels(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b Bucket
		rate := rapid.Int64Range(1, 1<<40).Draw(t, "rate")
		burst := time.Duration(rapid.Int64Range(0, int64(2*time.Second)).Draw(t, "burst"))
		now := rapid.Int64Range(0, 1<<60).Draw(t, "start")
		b.SetRate(now, rate, burst)
		size := float64(rate) * burst.Seconds()
		level, begin := size, now
		var taken float64
		slack := 0.0 // nanoseconds: each take and each change is rounded up
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			pass := rapid.Int64Range(0, int64(time.Second)).Draw(t, "pass")
			now += pass
			level = min(size, level+float64(rate)*float64(pass)/1e9)
			if rapid.IntRange(0, 9).Draw(t, "rate changes") == 0 {
				old := rate
				rate = rapid.Int64Range(1, 1<<40).Draw(t, "new rate")
				slack = slack*max(1, float64(old)/float64(rate)) + 1
				// What is owed stays; what was saved up is a time's worth.
				if level > 0 {
					level = level / max(size, 1e-9) * float64(rate) * burst.Seconds()
				}
				size = float64(rate) * burst.Seconds()
				b.SetRate(now, rate, burst)
				begin, taken = now, -level
				continue
			}
			n := rapid.Int64Range(1, 1<<30).Draw(t, "take")
			level -= float64(n)
			taken += float64(n)
			slack++
			got := b.Take(now, n)
			want := max(0, -level/float64(rate)*1e9)
			if diff := math.Abs(float64(got) - want); diff > slack+want*1e-6+float64(now)*1e-12+1000 {
				t.Fatalf("take %d at %d: wait %v, the level %f says %v", n, now, got, level, time.Duration(want))
			}
			if rapid.Bool().Draw(t, "wait") {
				now += int64(got)
				level += float64(rate) * float64(got) / 1e9
				most := float64(rate)*float64(now-begin)/1e9 + size
				if taken > most*(1+1e-9)+float64(rate)*1e-6+1 {
					t.Fatalf("%f taken in %v, at most %f are allowed", taken, time.Duration(now-begin), most)
				}
			}
		}
	})
}
