// A model that costs nothing and callers that cost little, for benchmarks on one machine: `load stub` and `load call`.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sort"
	"strings"
	"sync"
	"time"
)

const answer = `{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"stub","choices":[{"index":0,"message":` +
	`{"role":"assistant","content":"%s"},"finish_reason":"stop"}],"usage":{"prompt_tokens":100,"completion_tokens":80,"total_tokens":180}}`

var whole = []byte(fmt.Sprintf(answer, strings.Repeat("word ", 80)))

func piece(delta, reason string) []byte {
	return []byte(`data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"stub","choices":[{"index":0,"delta":` +
		delta + `,"finish_reason":` + reason + "}]}\n\n")
}

// stub answers every POST with the same completion, as a whole or as a stream of `chunks` events.
func stub(arguments []string) {
	flags := flag.NewFlagSet("stub", flag.ExitOnError)
	chunks := flags.Int("chunks", 20, "events of a stream")
	pause := flags.Duration("pause", 0, "between two events")
	flags.Parse(arguments)
	content, last := piece(`{"content":"word "}`, "null"), piece("{}", `"stop"`)
	usage := []byte(`data: {"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120}}` + "\n\ndata: [DONE]\n\n")
	handler := func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if !bytes.Contains(body, []byte(`"stream":true`)) {
			w.Header().Set("Content-Type", "application/json")
			w.Write(whole)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for range *chunks {
			w.Write(content)
			w.(http.Flusher).Flush()
			if *pause > 0 {
				time.Sleep(*pause)
			}
		}
		w.Write(last)
		w.Write(usage)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr())
	panic(http.Serve(listener, http.HandlerFunc(handler)))
}

type result struct {
	Requests, Failed                           int
	Seconds, P50, P99, FirstP50, FirstP99, Max float64
	Failure                                    string `json:",omitempty"`
}

// call keeps `conns` connections busy for `seconds`, or at `rate` requests a second altogether.
func call(arguments []string) {
	flags := flag.NewFlagSet("call", flag.ExitOnError)
	url := flags.String("url", "", "where to")
	conns := flags.Int("conns", 32, "at once")
	seconds := flags.Float64("seconds", 5, "how long")
	rate := flags.Float64("rate", 0, "requests a second; 0: as many as are answered")
	key := flags.String("key", "", "sent as a bearer token")
	path := flags.String("body", "", "file with the request; {user} is replaced by a number")
	flags.Parse(arguments)
	body, err := os.ReadFile(*path)
	if err != nil {
		panic(err)
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: *conns, MaxConnsPerHost: *conns}}
	var mutex sync.Mutex
	var times, firsts []float64
	var found result
	begun := time.Now()
	until := begun.Add(time.Duration(*seconds * float64(time.Second)))
	var group sync.WaitGroup
	for n := range *conns {
		group.Add(1)
		go func() {
			defer group.Done()
			gap := time.Duration(0)
			if *rate > 0 {
				gap = time.Duration(float64(*conns) / *rate * float64(time.Second))
			}
			due := begun.Add(gap * time.Duration(n) / time.Duration(*conns))
			for i := 0; ; i++ {
				if gap > 0 {
					time.Sleep(time.Until(due))
				} else {
					due = time.Now()
				}
				if !due.Before(until) {
					return
				}
				user := fmt.Sprintf("user-%d", (n*7919+i*31)%5000)
				took, first, failure := once(client, *url, *key, bytes.ReplaceAll(body, []byte("{user}"), []byte(user)), due)
				mutex.Lock()
				if failure != "" {
					found.Failed++
					found.Failure = failure
				} else {
					found.Requests++
					times, firsts = append(times, took), append(firsts, first)
				}
				mutex.Unlock()
				due = due.Add(gap)
			}
		}()
	}
	group.Wait()
	found.Seconds = time.Since(begun).Seconds()
	found.P50, found.P99, found.Max = quantile(times, 0.5), quantile(times, 0.99), quantile(times, 1)
	found.FirstP50, found.FirstP99 = quantile(firsts, 0.5), quantile(firsts, 0.99)
	json.NewEncoder(os.Stdout).Encode(found)
}

// once returns seconds from when the request was due until its last and its first byte.
func once(client *http.Client, url, key string, body []byte, due time.Time) (float64, float64, string) {
	request, _ := http.NewRequest("POST", url, bytes.NewReader(body))
	request.Header.Set("Content-Type", "application/json")
	if key != "" {
		request.Header.Set("Authorization", "Bearer "+key)
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, 0, err.Error()
	}
	defer response.Body.Close()
	buffer := make([]byte, 16384)
	n, err := response.Body.Read(buffer)
	first := time.Since(due).Seconds()
	said := string(buffer[:min(n, 200)])
	for err == nil {
		_, err = response.Body.Read(buffer)
	}
	if err != io.EOF || response.StatusCode != 200 {
		return 0, 0, fmt.Sprintf("%d %v %s", response.StatusCode, err, said)
	}
	return time.Since(due).Seconds(), first, ""
}

func quantile(values []float64, share float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sort.Float64s(values)
	return values[min(len(values)-1, int(share*float64(len(values))))]
}

func main() {
	map[string]func([]string){"stub": stub, "call": call}[os.Args[1]](os.Args[2:])
}
