module github.com/heliograph-dev/heliograph/test/e2e

go 1.26.0
