// Answers requests over HTTP on the port that PORT names.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
)

// answer is what is answered to a request for a path.
func answer(path string) string {
	return fmt.Sprintf("Hello from {{name}}, you asked for %s\n", path)
}

func main() {
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, answer(r.URL.Path))
	})
	log.Printf("listening on port %s", port)
	log.Fatal(http.ListenAndServe(":"+port, nil))
}
