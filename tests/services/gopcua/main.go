// A poor OPC UA server: no security, a session time-out of 0, one value per item and message, no Republish, no
// TransferSubscriptions, no history.
//
//	server PORT
//
// ns=1;s=Double is its variable. A number on stdin is its next value, answered by "set"; the end of stdin stops it.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/gopcua/opcua/server"
	"github.com/gopcua/opcua/ua"
)

func main() {
	port, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	s := server.New(
		server.EndPoint("127.0.0.1", port),
		server.EnableSecurity("None", ua.MessageSecurityModeNone),
		server.EnableAuthMode(ua.UserTokenTypeAnonymous),
	)
	plant := server.NewMapNamespace(s, "urn:mec:poor")
	plant.Mu.Lock()
	plant.Data["Double"] = 0.25
	plant.Mu.Unlock()
	if err := s.Start(context.Background()); err != nil {
		panic(err)
	}
	fmt.Printf("ready %d\n", plant.ID())
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		value, err := strconv.ParseFloat(lines.Text(), 64)
		if err != nil {
			fmt.Println("error", err)
			continue
		}
		plant.Mu.Lock()
		plant.Data["Double"] = value
		plant.Mu.Unlock()
		plant.ChangeNotification("Double")
		fmt.Println("set")
	}
}
