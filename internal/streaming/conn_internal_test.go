package streaming

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// A client that reads slowly has much to read after the goodbye. As long as it pings, as client-go does every five
// seconds, its connection stays: a ping behind the close would take away what it has not got.
func TestClientThatStillReadsIsNotCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		c := &conn{Conn: server, ctx: ctx, cancel: cancel, set: &connSet{}}
		go func() { // the protocol's reading, which goes on after the goodbye
			buf := make([]byte, 16)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
			}
		}()
		c.closeWithin(lingering)
		for range 100 {
			<-time.After(5 * time.Second) // of the bubble's clock
			if _, err := client.Write([]byte("ping")); err != nil {
				t.Fatalf("a client that still reads is cut off: %v", err)
			}
		}
		<-time.After(2 * lingering)
		synctest.Wait()
		if ctx.Err() == nil {
			t.Error("the connection of a client that is silent stays")
		}
	})
}
