package schema

import "fmt"

// suggest is "did you mean …?" for a name that is not among the known ones, or ""
// when none is near. Equally near names are settled by their order.
func suggest(name string, known []string) string {
	if near := nearest(name, known); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return ""
}

// nearest is the known name that takes the fewest edits to reach, "" when that
// is more than a third of the name.
func nearest(name string, known []string) string {
	const longest = 64 // names are labels; anything longer is no slip of the hand
	if len(name) > longest {
		return ""
	}
	best, limit := "", max(1, len(name)/3)
	for _, k := range known {
		if len(k) > longest || len(k) > len(name)+limit || len(name) > len(k)+limit {
			continue
		}
		if d := distance(name, k); d <= limit && k != name {
			best, limit = k, d-1
		}
	}
	return best
}

// distance counts the insertions, deletions, replacements and swaps of
// neighbours that turn a into b (optimal string alignment), in bytes.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
