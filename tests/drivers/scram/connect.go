// connect HOST PORT USER PASSWORD DATABASE: the median of ten connects in milliseconds, or the driver's refusal.
package main

import (
	"database/sql"
	"fmt"
	"os"
	"sort"
	"time"

	_ "github.com/lib/pq"
)

func timed(dsn string) (float64, error) {
	began := time.Now()
	db, err := sql.Open("postgres", dsn)
	if err == nil {
		err = db.Ping()
		db.Close()
	}
	return float64(time.Since(began).Microseconds()) / 1000, err
}

func main() {
	given := os.Args
	dsn := fmt.Sprintf("host=%s port=%s user=%s password=%s dbname=%s sslmode=disable", given[1], given[2], given[3], given[4], given[5])
	var taken []float64
	for i := 0; i < 11; i++ {
		milliseconds, err := timed(dsn)
		if err != nil {
			fmt.Println("refused:", err)
			return
		}
		if i > 0 {
			taken = append(taken, milliseconds)
		}
	}
	sort.Float64s(taken)
	fmt.Printf("%.1f\n", (taken[4]+taken[5])/2)
}
