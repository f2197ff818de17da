package streaming

import (
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/moby/spdystream"
)

// A connection that breaks between a stream and the answer to it ends all the same: the library lets who closes a
// stream wait for its answer.
func TestConnectionThatBreaksBeforeAnAnswerEnds(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	asked := make(chan struct{})
	s := &spdyStreams{
		admit: func(*spdystream.Stream) error {
			close(asked)
			return ours.Close()
		},
		opened: func(*spdystream.Stream) { t.Error("a stream was opened that nobody could answer") },
	}
	if err := s.serve(&conn{cancel: func() {}}, ours); err != nil {
		t.Fatal(err)
	}
	client, err := spdystream.NewConnection(theirs, false)
	if err != nil {
		t.Fatal(err)
	}
	go client.Serve(spdystream.NoOpStreamHandler)
	if _, err = client.CreateStream(http.Header{}, nil, false); err != nil {
		t.Fatal(err)
	}
	<-asked
	ended := make(chan struct{})
	go func() { s.end(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("the connection waits for an answer that nobody gives")
	}
}
