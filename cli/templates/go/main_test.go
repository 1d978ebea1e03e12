package main

import (
	"strings"
	"testing"
)

func TestGreets(t *testing.T) {
	if !strings.Contains(answer("/x"), "/x") {
		t.Fatal(answer("/x"))
	}
}
