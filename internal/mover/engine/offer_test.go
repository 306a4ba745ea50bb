package engine

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"lifeboat.dev/lifeboat/internal/mover/change"
)

func TestAServiceThatIsAbsentIsWaitedForAWhile(t *testing.T) {
	absent := &change.ServiceFailed{Code: codes.Unavailable}
	for name, c := range map[string]struct {
		back   time.Duration
		err    error
		waited time.Duration
		had    bool
	}{
		"there":                       {had: true},
		"back after a restart":        {back: 9500 * time.Millisecond, err: absent, waited: 10 * time.Second, had: true},
		"gone for good":               {back: time.Hour, err: absent, waited: servicePatience},
		"says no":                     {back: time.Hour, err: &change.ServiceFailed{Code: codes.PermissionDenied}},
		"breaks the contract":         {back: time.Hour, err: &change.BadStream{}},
		"no service was asked at all": {back: time.Hour, err: errors.New("is no file")},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				patient, cancel := context.WithTimeout(t.Context(), servicePatience)
				defer cancel()
				var logged strings.Builder
				_, err := whenThere(patient, slog.New(slog.NewTextHandler(&logged, nil)), func() (change.List, error) {
					if time.Since(began) < c.back {
						return change.List{}, c.err
					}
					return change.List{}, nil
				})
				if said := strings.Count(logged.String(), "does not answer"); said != min(1, int(c.waited)) {
					t.Errorf("said %d times that it waits:\n%s", said, logged.String())
				}
				if c.had != (err == nil) || time.Since(began) != c.waited {
					t.Errorf("after %s: %v; want a list: %v, after %s", time.Since(began), err, c.had, c.waited)
				}
			})
		})
	}
}
