package streaming

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// status is how a command ended, in the fields of Kubernetes' meta/v1 Status that clients read.
type status struct {
	Status  string   `json:"status"` // "Success" or "Failure"
	Message string   `json:"message,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Details *details `json:"details,omitempty"`
	Code    int      `json:"code,omitempty"`
}

type details struct {
	Causes []cause `json:"causes"`
}

type cause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// statusOf tells of a process that ended with an exit code, or of what could not be run.
func statusOf(exitCode int32, err error) status {
	switch {
	case err != nil:
		return status{
			Status: "Failure", Message: "Internal error occurred: " + err.Error(),
			Reason: "InternalError", Code: http.StatusInternalServerError,
		}
	case exitCode != 0:
		return status{
			Status:  "Failure",
			Message: fmt.Sprintf("command terminated with non-zero exit code: exit status %d", exitCode),
			Reason:  "NonZeroExitCode",
			Details: &details{Causes: []cause{{Reason: "ExitCode", Message: strconv.Itoa(int(exitCode))}}},
		}
	default:
		return status{Status: "Success"}
	}
}

// write tells a client of a protocol since version 4 everything, an older one its message.
func (st status) write(w io.Writer, structured bool) error {
	b := []byte(st.Message)
	if structured {
		var err error
		if b, err = json.Marshal(st); err != nil {
			return err
		}
	}
	if len(b) == 0 {
		return nil
	}
	_, err := w.Write(b)
	return err
}
