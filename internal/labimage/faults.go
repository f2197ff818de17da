package labimage

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
)

// On limits a fault to requests with this method whose path contains part; "" is any.
func On(method, part string, f Fault) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		if method != "" && r.Method != method || !strings.Contains(r.URL.Path, part) {
			return false
		}
		return f(w, r, next)
	}
}

// Times lets f answer n requests; what comes after is served.
func Times(n int32, f Fault) Fault {
	var used atomic.Int32
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		return used.Add(1) <= n && f(w, r, next)
	}
}

// After serves n requests before f answers the others.
func After(n int32, f Fault) Fault {
	var seen atomic.Int32
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		return seen.Add(1) > n && f(w, r, next)
	}
}

// NoRanges refuses requests for a part of a blob.
func NoRanges() Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		return r.Header.Get("Range") != "" && Status(http.StatusRequestedRangeNotSatisfiable)(w, r, next)
	}
}

// Either tries a and then b.
func Either(a, b Fault) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		return a(w, r, next) || b(w, r, next)
	}
}

// Status answers with an HTTP status.
func Status(code int) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		http.Error(w, http.StatusText(code), code)
		return true
	}
}

// Busy answers with an HTTP status and says when to come back.
func Busy(code int, retryAfter string) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		w.Header().Set("Retry-After", retryAfter)
		return Status(code)(w, r, next)
	}
}

// HTML answers with a web page, as a captive portal does.
func HTML() Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = fmt.Fprint(w, "<html><body>Please log in</body></html>")
		return true
	}
}

// Stall sends the first half of the answer and then nothing until the client gives up.
func Stall() Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		sendHalf(w, r, next)
		<-r.Context().Done()
		return true
	}
}

// Gate sends the first half of the answer, and the rest when open is closed.
func Gate(open <-chan struct{}) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		rest := sendHalf(w, r, next)
		select {
		case <-open:
			_, _ = w.Write(rest)
		case <-r.Context().Done():
		}
		return true
	}
}

// Reset sends the first half of the answer and breaks the connection.
func Reset() Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		sendHalf(w, r, next)
		panic(http.ErrAbortHandler)
	}
}

// Corrupt changes one byte in the middle of the answer.
func Corrupt() Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		rec := record(w, r, next)
		body := bytes.Clone(rec.Body.Bytes())
		if len(body) > 0 {
			body[len(body)/2] ^= 0x20
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(body)
		return true
	}
}

// ranges serves requests for the rest of a blob, as registries do: the one underneath wants to be told
// where the rest ends.
func ranges(store http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.Header.Get("Range") == "" {
			store.ServeHTTP(w, r)
			return
		}
		whole := r.Clone(r.Context())
		whole.Header.Del("Range")
		rec := httptest.NewRecorder()
		store.ServeHTTP(rec, whole)
		http.ServeContent(w, r, "", Epoch, bytes.NewReader(rec.Body.Bytes()))
	})
}

// sendHalf sends the first half of next's answer and returns the rest.
func sendHalf(w http.ResponseWriter, r *http.Request, next http.Handler) (rest []byte) {
	rec := record(w, r, next)
	half := rec.Body.Len() / 2
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes()[:half])
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
	return rec.Body.Bytes()[half:]
}

// record runs next and copies the headers of its answer to w.
func record(w http.ResponseWriter, r *http.Request, next http.Handler) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	return rec
}

// Edit changes the body of the answer, which keeps no length of its own.
func Edit(change func([]byte) []byte) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		rec := record(w, r, next)
		w.Header().Del("Content-Length")
		w.WriteHeader(rec.Code)
		_, _ = w.Write(change(rec.Body.Bytes()))
		return true
	}
}
