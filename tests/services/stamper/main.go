// An OPC UA server that writes the time into a variable at a steady pace: what latency is measured with.
//
//	stamper PORT
//
// ns=1;s=Stamp, Int64, is the UTC time in microseconds since 1970 when it was written, and its source time. A line on
// stdin, "go PERIOD_US", sets it going; "go 0" holds it; the end of stdin stops the server. A subscription's publishing
// interval of 1 ms is kept as asked for, so that each change of a 2 ms pace is published in a notification of its own.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

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
	plant := server.NewNodeNameSpace(s, "urn:mec:stamper")
	var stamp atomic.Pointer[ua.DataValue]
	stamp.Store(valueAt(time.Now()))
	node := plant.AddNewVariableStringNode("Stamp", func() *ua.DataValue { return stamp.Load() })
	if err := s.Start(context.Background()); err != nil {
		panic(err)
	}
	fmt.Printf("ready %d\n", plant.ID())
	var period atomic.Int64
	go func() {
		next := time.Now()
		for {
			wanted := time.Duration(period.Load()) * time.Microsecond
			if wanted == 0 {
				time.Sleep(10 * time.Millisecond)
				next = time.Now()
				continue
			}
			next = next.Add(wanted)
			time.Sleep(time.Until(next))
			stamp.Store(valueAt(time.Now()))
			plant.ChangeNotification(node.ID())
		}
	}()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		wanted, err := strconv.ParseInt(strings.TrimPrefix(lines.Text(), "go "), 10, 64)
		if err != nil {
			fmt.Println("error", err)
			continue
		}
		period.Store(wanted)
		fmt.Println("going")
	}
}

func valueAt(now time.Time) *ua.DataValue {
	return &ua.DataValue{
		EncodingMask:    ua.DataValueValue | ua.DataValueSourceTimestamp,
		Value:           ua.MustVariant(now.UnixMicro()),
		SourceTimestamp: now,
	}
}
