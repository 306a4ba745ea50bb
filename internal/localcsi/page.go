package localcsi

import (
	"sort"
	"strings"

	"google.golang.org/grpc/codes"

	"lifeboat.dev/lifeboat/internal/localcsi/pool"
)

// tokenPrefix begins every page token; the ID of the last entry of the page before follows. A page therefore
// continues at the right place although entries come and go.
const tokenPrefix = "after:"

// page returns the part of a list that a request asks for, and the token for the next part.
func page[T any](list []T, id func(T) string, token string, limit int32) ([]T, string, error) {
	if limit < 0 {
		return nil, "", refuse(codes.InvalidArgument, "max_entries %d is negative", limit)
	}
	sort.Slice(list, func(i, j int) bool { return id(list[i]) < id(list[j]) })
	if token != "" {
		after, ok := strings.CutPrefix(token, tokenPrefix)
		if !ok || !pool.ValidID(after) {
			return nil, "", refuse(codes.Aborted, "starting_token %q is none that this driver gave: begin the list again", token)
		}
		first := sort.Search(len(list), func(i int) bool { return id(list[i]) > after })
		list = list[first:]
	}
	if limit == 0 || int(limit) >= len(list) {
		return list, "", nil
	}
	list = list[:limit]
	return list, tokenPrefix + id(list[limit-1]), nil
}
