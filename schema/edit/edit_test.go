package edit_test

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/schema"
	"github.com/kokoa-proxy/kokoa/schema/edit"
)

func TestMain(m *testing.M) {
	schema.RunIfWorker()
	os.Exit(m.Run())
}

func TestOrigin(t *testing.T) {
	at := time.Date(2027, 1, 31, 18, 0, 0, 999, time.FixedZone("", 2*3600))
	for _, c := range []struct {
		origin fleet.Origin
		want   string
	}{
		{
			fleet.Origin{Name: "vm1", PublicKey: keys.Public{1}, TunnelAddress: netip.MustParseAddr("10.86.1.2")},
			`package fleet

origin: vm1: {
	public_key:     "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	tunnel_address: "10.86.1.2"
}
`,
		},
		{
			fleet.Origin{
				Name: "rpi-home", PublicKey: keys.Public{1}, NextKey: keys.Public{2}, TunnelAddress: netip.MustParseAddr("fd00::1"),
				Hosts: []string{"blog.example.com", "*.apps.example.com"}, Expires: &at,
			},
			`package fleet

origin: "rpi-home": {
	public_key:     "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	next_key:       "AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	tunnel_address: "fd00::1"
	hosts: ["blog.example.com", "*.apps.example.com"]
	expires: "2027-01-31T16:00:00Z"
}
`,
		},
	} {
		if got := string(edit.Origin(c.origin)); got != c.want {
			t.Errorf("got\n%s\nwant\n%s", got, c.want)
		}
	}
	for _, name := range []string{"0", "4ever", "true", "null", "for", "let", "if", "in", "len", "string", "a"} {
		text := edit.Origin(fleet.Origin{Name: name, TunnelAddress: netip.MustParseAddr("10.86.1.2")})
		if _, empty, err := edit.Remove(text, "origin", name); err != nil || !empty {
			t.Errorf("origin %s cannot be found again: %v\n%s", name, err, text)
		}
	}
}

// change is what a test does to a file.
type change func(src []byte) ([]byte, error)

func remove(name string) change {
	return func(src []byte) ([]byte, error) {
		out, empty, err := edit.Remove(src, "origin", name)
		if empty {
			out = append(out, "EMPTY\n"...)
		}
		return out, err
	}
}

func set(field, value string) change {
	return func(src []byte) ([]byte, error) { return edit.SetField(src, "origin", "rpi", field, value) }
}

func unset(field string) change {
	return func(src []byte) ([]byte, error) { return edit.RemoveField(src, "origin", "rpi", field) }
}

func TestEdit(t *testing.T) {
	for _, c := range []struct {
		name   string
		do     change
		before string
		after  string
	}{
		{"a file of its own", remove("rpi"), `package fleet

// At home.
origin: rpi: {
	public_key: "a" // its key
}
`, `package fleet
EMPTY
`},
		{"one of several", remove("rpi"), `// Ours.
package fleet

// The first.
origin: vm1: {
	public_key: "b"
}

// At home.
origin: "rpi": {
	public_key: "a"
} // gone soon

// The last.
origin: vm2: public_key: "c"
`, `// Ours.
package fleet

// The first.
origin: vm1: {
	public_key: "b"
}

// The last.
origin: vm2: public_key: "c"
`},
		{"the last of several", remove("rpi"), `package fleet

origin: vm1: public_key: "b"

origin: rpi: public_key: "a"
`, `package fleet

origin: vm1: public_key: "b"
`},
		{"in a struct", remove("rpi"), `package fleet

origin: {
	// The first.
	vm1: {
		public_key: "b"
	}

	// At home.
	rpi: {
		public_key: "a"
	}
}
`, `package fleet

origin: {
	// The first.
	vm1: {
		public_key: "b"
	}
}
`},
		{"first in a struct", remove("rpi"), `package fleet

origin: {
	rpi: public_key: "a"

	vm1: public_key: "b"
}
`, `package fleet

origin: {
	vm1: public_key: "b"
}
`},
		{"alone in a struct", remove("rpi"), `package fleet

// All of them.
origin: {
	// At home.
	rpi: {public_key: "a"}
}

route: a: host: "a.example.com"
`, `package fleet

route: a: host: "a.example.com"
`},
		{"spread", remove("rpi"), `package fleet

origin: rpi: public_key:     "a"
origin: vm1: public_key:     "b"
origin: rpi: tunnel_address: "10.86.1.1"
origin: {
	rpi: hosts: ["x"]
	vm2: public_key: "c"
	rpi: expires:    "never"
}
`, `package fleet

origin: vm1: public_key: "b"
origin: {
	vm2: public_key: "c"
}
`},
		{"in one line", remove("rpi"), `package fleet
origin: {vm1: {public_key: "b"}, rpi: {public_key: "a"}, vm2: {public_key: "c"}}
`, `package fleet
origin: {vm1: {public_key: "b"}, vm2: {public_key: "c"}}
`},
		{"last in one line", remove("rpi"), `package fleet
origin: {vm1: {public_key: "b"}, rpi: {public_key: "a"}}
`, `package fleet
origin: {vm1: {public_key: "b"}}
`},
		{"of a template", remove("rpi"), `package fleet

origin: rpi: #Pi & {public_key: "a"}
origin: vm1: #Pi & {public_key: "b"}
`, `package fleet

origin: vm1: #Pi & {public_key: "b"}
`},
		{"beside a pattern and others' names", remove("rpi"), `package fleet

origin: [string]: expires:   "2027-01-31T16:00:00Z"
edge: rpi: endpoint:         "x:1"
origin: rpi: public_key:     "a"
origin: "rpi-2": public_key: "b"
#origin: rpi: public_key:    "c"
`, `package fleet

origin: [string]: expires:   "2027-01-31T16:00:00Z"
edge: rpi: endpoint:         "x:1"
origin: "rpi-2": public_key: "b"
#origin: rpi: public_key:    "c"
`},
		{"not formatted stays so", remove("rpi"), `package fleet
   origin:   vm1:   {  public_key:"b"   }   //  as I like it


origin: rpi: public_key: "a"
route:{a:{host:"a.example.com"}}
`, `package fleet
   origin:   vm1:   {  public_key:"b"   }   //  as I like it


route:{a:{host:"a.example.com"}}
`},
		{"comments of nobody stay", remove("rpi"), `package fleet

// Everything below is mine.

origin: rpi: public_key: "a"

// So is this.
`, `package fleet

// Everything below is mine.

// So is this.
EMPTY
`},
		{"import stays with an empty file", remove("rpi"), `package fleet

import "strings"

origin: rpi: public_key: strings.ToLower("A")
`, `package fleet

import "strings"
EMPTY
`},

		{"change a field", set("public_key", "b"), `package fleet

// At home.
origin: rpi: {
	public_key:     "a" // its key
	tunnel_address: "10.86.1.1"
}
`, `package fleet

// At home.
origin: rpi: {
	public_key:     "b" // its key
	tunnel_address: "10.86.1.1"
}
`},
		{"change a raw string", set("public_key", `"\`), `package fleet
origin: rpi: "public_key": #"a"#
`, `package fleet
origin: rpi: "public_key": "\"\\"
`},
		{"add a field in its place", set("next_key", "b"), `package fleet

origin: rpi: {
	public_key: "a" // its key

	// Its address.
	tunnel_address: "10.86.1.1"
}
`, `package fleet

origin: rpi: {
	public_key: "a" // its key
	next_key:   "b"

	// Its address.
	tunnel_address: "10.86.1.1"
}
`},
		{"add a field, and the layout follows", set("tunnel_address", "b"), `package fleet

origin: rpi: {
	public_key: "a"
	expires:    "c"
}
`, `package fleet

origin: rpi: {
	public_key:     "a"
	tunnel_address: "b"
	expires:        "c"
}
`},
		{"add a field that the schema does not order", set("note", "b"), `package fleet

origin: rpi: {
	public_key: "a"
	hosts: [
		"x", // one
	]
}
`, `package fleet

origin: rpi: {
	public_key: "a"
	hosts: [
		"x", // one
	]
	note: "b"
}
`},
		{"add a field in one line", set("next_key", "b"), `package fleet
origin: rpi: {public_key: "a", tunnel_address: "10.86.1.1"}
`, `package fleet
origin: rpi: {public_key: "a", next_key: "b", tunnel_address: "10.86.1.1"}
`},
		{"add a field where there is none", set("next_key", "b"), `package fleet
origin: rpi: {}
`, `package fleet
origin: rpi: {next_key: "b"}
`},
		{"add a field to a spread object", set("next_key", "b"), `package fleet

origin: rpi: public_key: "a" // its key
origin: vm1: public_key: "c"
`, `package fleet

origin: rpi: public_key: "a" // its key
origin: rpi: next_key:   "b"
origin: vm1: public_key: "c"
`},
		{"add a field to a spread object in a struct", set("next_key", "b"), `package fleet

origin: {
	rpi: public_key: "a"
	vm1: public_key: "c"
}
`, `package fleet

origin: {
	rpi: public_key: "a"
	rpi: next_key:   "b"
	vm1: public_key: "c"
}
`},
		{"add a field, with other line ends", set("next_key", "b"),
			"package fleet\r\norigin: rpi: {\r\n  public_key: \"a\" // its key\r\n}\r\n",
			"package fleet\r\norigin: rpi: {\r\n  public_key: \"a\" // its key\r\n  next_key: \"b\"\r\n}\r\n"},

		{"remove a field", unset("next_key"), `package fleet

origin: rpi: {
	public_key: "a"
	// Soon.
	next_key: "b"

	tunnel_address: "10.86.1.1"
}
`, `package fleet

origin: rpi: {
	public_key: "a"

	tunnel_address: "10.86.1.1"
}
`},
		{"remove a spread field", unset("next_key"), `package fleet

origin: rpi: public_key: "a"
origin: rpi: next_key:   "b"
`, `package fleet

origin: rpi: public_key: "a"
`},
		{"remove the last field", unset("next_key"), `package fleet

origin: rpi: {
	next_key: "b"
}
`, `package fleet

origin: rpi: {}
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.do([]byte(c.before))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != c.after {
				t.Errorf("got\n%s\nwant\n%s", got, c.after)
			}
		})
	}
}

func TestRefuse(t *testing.T) {
	for _, c := range []struct {
		name string
		do   change
		src  string
		is   error
		want string
	}{
		{"nothing", remove("rpi"), `package fleet
origin: vm1: public_key: "a"
`, edit.ErrNotHere, "origin rpi is not in this file"},
		{"another kind", remove("rpi"), `package fleet
route: rpi: host: "a"
`, edit.ErrNotHere, "origin rpi is not in this file"},
		{"no such field", unset("next_key"), `package fleet
origin: rpi: public_key: "a"
`, edit.ErrNotHere, "next_key of origin rpi is not in this file"},
		{"an object of nowhere", set("next_key", "b"), `package fleet
`, edit.ErrNotHere, "origin rpi is not in this file"},
		{"a comprehension", remove("rpi"), `package fleet
for n in ["rpi", "vm1"] {
	origin: (n): public_key: "a"
}
`, edit.ErrByHand, "2:25: origin rpi is made by a comprehension: edit it by hand"},
		{"a condition", remove("rpi"), `package fleet
origin: rpi: public_key: "a"
if true {origin: rpi: next_key: "b"}
`, edit.ErrByHand, "3:9: origin rpi is made by a comprehension: edit it by hand"},
		{"a computed name", remove("rpi"), `package fleet
_n: "rpi"
origin: "\(_n)": public_key: "a"
`, edit.ErrByHand, "3:9: origin rpi may have the name that is computed here: edit it by hand"},
		{"an alias", remove("rpi"), `package fleet
X=origin: rpi: public_key: "a"
route: a: origin: X.rpi.public_key
`, edit.ErrByHand, "2:1: origin rpi has an alias: edit it by hand"},
		{"an alias of a value", remove("rpi"), `package fleet
origin: X={rpi: public_key: "a", vm1: public_key: X.rpi.public_key}
`, edit.ErrByHand, "2:9: origin rpi is made by an expression: edit it by hand"},
		{"embedded", remove("rpi"), `package fleet
{origin: rpi: public_key: "a"}
`, edit.ErrByHand, "2:1: origin rpi comes from a value that is embedded here: edit it by hand"},
		{"embedded from elsewhere", remove("rpi"), `package fleet
origin: #All
`, edit.ErrByHand, "2:9: origin rpi is made by an expression: edit it by hand"},
		{"two structs", remove("rpi"), `package fleet
origin: {rpi: public_key: "a"} & {vm1: public_key: "a"}
`, edit.ErrByHand, "2:9: origin rpi is made by an expression: edit it by hand"},
		{"a template", remove("rpi"), `package fleet
#All: origin: rpi: public_key: "a"
`, edit.ErrByHand, "2:7: origin rpi comes from a template: edit it by hand"},
		{"a constraint", remove("rpi"), `package fleet
origin: rpi?: public_key: "a"
`, edit.ErrByHand, "2:9: origin rpi is a constraint: edit it by hand"},
		{"used", remove("rpi"), `package fleet
origin: rpi: public_key: "a"
origin: vm1: next_key: origin.rpi.public_key
`, edit.ErrByHand, "3:24: origin rpi is used here: edit it by hand"},
		{"used by index", remove("rpi"), `package fleet
origin: vm1: next_key: origin["rpi"].public_key
origin: "rpi": public_key: "a"
`, edit.ErrByHand, "2:24: origin rpi is used here: edit it by hand"},
		{"an import that nothing else uses", remove("rpi"), `package fleet
import s "strings"
origin: rpi: public_key: s.ToLower("A")
origin: vm1: public_key: "b"
`, edit.ErrByHand, "2:8: nothing but origin rpi uses the import s: edit it by hand"},
		{"a let that nothing else uses", remove("rpi"), `package fleet
let key = "a"
origin: rpi: public_key: key
origin: vm1: public_key: "b"
`, edit.ErrByHand, "2:1: nothing but origin rpi uses let key: edit it by hand"},
		{"set what is computed", set("public_key", "b"), `package fleet
_key: "a"
origin: rpi: public_key: _key
`, edit.ErrByHand, "3:26: public_key of origin rpi is an expression: edit it by hand"},
		{"set what is given twice", set("public_key", "b"), `package fleet
origin: rpi: public_key: "a"
origin: rpi: public_key: "a"
`, edit.ErrByHand, "3:14: public_key of origin rpi is given twice: edit it by hand"},
		{"set in an object of a template", set("next_key", "b"), `package fleet
origin: rpi: #Pi & {public_key: "a"}
`, edit.ErrByHand, "2:14: next_key of origin rpi is made by an expression: edit it by hand"},
		{"set beside a condition", set("next_key", "b"), `package fleet
origin: rpi: {
	public_key: "a"
	if true {next_key: "c"}
}
`, edit.ErrByHand, "4:10: next_key of origin rpi is made by a comprehension: edit it by hand"},
		{"no CUE", remove("rpi"), `package fleet
origin: {
`, nil, "parse: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := c.do([]byte(c.src))
			if err == nil {
				t.Fatalf("got\n%s", out)
			}
			if c.is != nil && (!errors.Is(err, c.is) || err.Error() != c.want) || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}
