package driver

import (
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
)

// claimLife is how long a claim is in force after it was taken. It has to cover the time between a controller's question to
// all nodes and its call to one of them; a controller that was slower than that is refused, and asks again.
const claimLife = 15 * time.Second

// claimKey is a name that only one claimant may create at a time.
type claimKey struct {
	kind  locatepb.Key_Kind
	value string
}

func (k claimKey) String() string {
	switch k.kind {
	case locatepb.Key_VOLUME_NAME:
		return "volume name " + k.value
	case locatepb.Key_CONSISTENCY_GROUP:
		return "consistency group " + k.value
	}
	return k.kind.String() + " " + k.value
}

// nameClaims keep two controllers from creating one name on two nodes. Either claims the name on all nodes before it looks whether
// one has it, and a node creates only under a claim in force. So of two controllers the later one finds the other's claim, its creation at
// work, or what it has created; and one that slept through its claim's end is refused, as its claim is not there any more.
//
// Claims are in memory. After a restart there are none, and creations under an older one are refused.
//
// It is safe for concurrent use.
type nameClaims struct {
	now func() time.Time

	mu      sync.Mutex
	byKey   map[claimKey]*nameClaim
	byToken map[string]*nameClaim
}

type nameClaim struct {
	token   string
	keys    []claimKey
	expires time.Time
	working int // creations under it; it is in force as long as there is one
}

func newNameClaims(now func() time.Time) *nameClaims {
	return &nameClaims{now: now, byKey: map[claimKey]*nameClaim{}, byToken: map[string]*nameClaim{}}
}

// take claims keys for token, beside those that it has. The error is Aborted when one of them is another's; nothing is claimed then.
func (c *nameClaims) take(token string, keys []claimKey) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sweep()
	for _, key := range keys {
		if other := c.byKey[key]; other != nil && other.token != token {
			what := "has claimed it"
			if other.working > 0 {
				what = "is creating it"
			}
			return status.Errorf(codes.Aborted, "%s: another call, or another controller, %s on this node; call again later", key, what)
		}
	}
	claim := c.byToken[token]
	if claim == nil {
		claim = &nameClaim{token: token}
		c.byToken[token] = claim
	}
	claim.expires = c.now().Add(claimLife)
	for _, key := range keys {
		if c.byKey[key] == nil {
			c.byKey[key] = claim
			claim.keys = append(claim.keys, key)
		}
	}
	return nil
}

// use begins a creation of keys under token's claim; done ends it. The error is Aborted when the claim is not in force or not
// for all of them.
func (c *nameClaims) use(token string, keys []claimKey) (done func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sweep()
	claim := c.byToken[token]
	for _, key := range keys {
		if claim == nil || c.byKey[key] != claim {
			return nil, status.Errorf(codes.Aborted, "%s: the caller's claim on it is not in force on this node; claim it again on all nodes (Locate)", key)
		}
	}
	claim.working++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		claim.working--
	}, nil
}

// release gives a claim up; a creation at work under it keeps it in force until it has ended.
func (c *nameClaims) release(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if claim := c.byToken[token]; claim != nil {
		claim.expires = c.now()
	}
	c.sweep()
}

// sweep forgets claims that are not in force. The caller holds mu.
func (c *nameClaims) sweep() {
	now := c.now()
	for token, claim := range c.byToken {
		if claim.working > 0 || now.Before(claim.expires) {
			continue
		}
		for _, key := range claim.keys {
			delete(c.byKey, key)
		}
		delete(c.byToken, token)
	}
}
