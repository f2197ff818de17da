package cluster_test

import (
	"context"
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// refusal is a check that Docker cannot pass.
type refusal struct {
	words *regexp.Regexp // what the pod's owner is told
	met   bool           // a check has its name
}

// listed are those of the engine that runs the pods, by the name of the check. TestSuite fills it.
var listed = map[string]*refusal{}

// readRefusals makes the rows of the document what is expected of this test's checks.
func readRefusals(t *testing.T) {
	t.Helper()
	for _, row := range table(t, "What Docker cannot do") {
		if len(row) != 3 || row[2] == "" {
			t.Fatalf("%s: a row is not check, words and reason: %q", document, row)
		}
		listed[row[0]] = &refusal{words: like(row[1])}
	}
	t.Cleanup(func() { clear(listed) })
}

// refusalsAreMet checks that every row names a check.
func refusalsAreMet(t *testing.T) {
	t.Helper()
	for name, r := range listed {
		if !r.met {
			t.Errorf("%s: no check is named %q", document, name)
		}
	}
}

// attempt is the test of a check that is expected to fail: it notes what it is told.
type attempt struct {
	testing.TB
	ctx context.Context

	mu   sync.Mutex
	said []string // guarded by mu
}

func (a *attempt) Context() context.Context { return a.ctx }
func (a *attempt) Fail()                    { a.note("failed") }
func (a *attempt) Error(args ...any)        { a.note(fmt.Sprint(args...)) }
func (a *attempt) Errorf(f string, args ...any) {
	a.note(fmt.Sprintf(f, args...))
}
func (a *attempt) Fatal(args ...any) { a.Error(args...); runtime.Goexit() }
func (a *attempt) FailNow()          { a.Fatal("failed") }
func (a *attempt) Fatalf(f string, args ...any) {
	a.Errorf(f, args...)
	runtime.Goexit()
}

func (a *attempt) note(text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.said = append(a.said, text)
}

func (a *attempt) result() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.said
}

// grace is how long a check that was refused may still come to its end.
const grace = 20 * time.Second

// refused runs a check that must fail, and must say so to who asked for the pod.
func (s *suite) refused(words *regexp.Regexp, f func(*suite)) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	a := &attempt{TB: s.t, ctx: ctx}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f(&suite{Cluster: s.Cluster, t: a, namespace: s.namespace})
	}()
	told := false
	s.eventually("an event like "+words.String(), func(ctx context.Context) error {
		var over bool
		select {
		case <-ended:
			over = true
		default:
		}
		events, err := s.Client.CoreV1().Events(s.namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		var all []string
		for _, e := range events.Items {
			all = append(all, e.Message)
		}
		told = words.MatchString(strings.Join(append(all, a.result()...), "\n"))
		if !told && !over {
			return fmt.Errorf("the events are %q", all)
		}
		return nil
	})
	if told {
		time.AfterFunc(grace, cancel)
	}
	<-ended
	switch said := a.result(); {
	case len(said) == 0:
		s.t.Errorf("the check passes: %s must not list it", document)
	case !told:
		s.t.Errorf("nobody was told %q; the check says %q", words, said)
	default:
		s.t.Logf("refused, as %s lists it: %q", document, said)
	}
}

func TestAttempt(t *testing.T) {
	for name, c := range map[string]struct {
		check func(testing.TB)
		want  int
	}{
		"one that passes":     {func(testing.TB) {}, 0},
		"one with errors":     {func(tb testing.TB) { tb.Error("x"); tb.Errorf("y") }, 2},
		"one that gives up":   {func(tb testing.TB) { tb.Fatal("x"); tb.Error("never") }, 1},
		"one that fails bare": {func(tb testing.TB) { tb.FailNow(); tb.Error("never") }, 1},
	} {
		a := &attempt{TB: t, ctx: t.Context()}
		ended := make(chan struct{})
		go func() { defer close(ended); c.check(a) }()
		<-ended
		if got := a.result(); len(got) != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}
