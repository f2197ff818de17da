package admin

import (
	"context"
	"net/http"

	"gantry/internal/pod"
)

// Foreign is what another runtime of Kubernetes has left on an engine and was not taken over.
type Foreign struct {
	Pods       []*pod.Sandbox   `json:"pods"`
	Containers []*pod.Container `json:"containers"`
}

// handleForeign answers GET /foreign.
func handleForeign(mux *http.ServeMux, ask func(context.Context) (Foreign, error)) {
	mux.HandleFunc("GET /foreign", func(w http.ResponseWriter, r *http.Request) {
		said, err := ask(r.Context())
		if err != nil {
			refuse(w, err)
			return
		}
		answer(w, said)
	})
}

// Foreign lists what another runtime has left on Docker.
func (c *Client) Foreign(ctx context.Context) (Foreign, error) {
	return ask[Foreign](ctx, c, "foreign")
}
