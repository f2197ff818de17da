// Command nonewprivs prints the user id that it runs with in effect. Installed set-user-ID root and
// started by another user, it prints 0 unless no_new_privs is set.
package main

import (
	"fmt"
	"os"
)

func main() { fmt.Println("Effective uid:", os.Geteuid()) }
