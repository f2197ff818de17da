package holder

import (
	"testing"
	"time"
)

func TestLooseDeathsAreBounded(t *testing.T) {
	var d deaths
	now := time.Now()
	for pid := 1; pid <= 100*maxLoose; pid++ {
		d.add(pid, death{at: now})
	}
	if n := len(d.all()); n < maxLoose || n > 2*maxLoose {
		t.Errorf("%d are remembered, want %d to %d", n, maxLoose, 2*maxLoose)
	}
	if _, ok := d.take(100*maxLoose - maxLoose + 1); !ok {
		t.Errorf("one of the last %d was forgotten", maxLoose)
	}
}

func TestLooseDeathIsTakenOnce(t *testing.T) {
	var d deaths
	now := time.Now()
	d.add(7, death{status: 1, at: now})
	d.add(8, death{at: now.Add(looseFor + 1)}) // a new generation
	d.add(7, death{status: 2, at: now.Add(looseFor + 2)})
	if x, ok := d.take(7); !ok || x.status != 2 {
		t.Errorf("got %+v, %t, want the last one", x, ok)
	}
	if x, ok := d.take(7); ok {
		t.Errorf("taken again: %+v", x)
	}
}

func TestLooseDeathIsForgottenInTime(t *testing.T) {
	var d deaths
	now := time.Now()
	d.add(7, death{at: now})
	d.add(8, death{at: now.Add(looseFor + 1)})
	d.add(9, death{at: now.Add(2*looseFor + 2)})
	if _, ok := d.take(7); ok {
		t.Error("it is remembered after two generations")
	}
}
