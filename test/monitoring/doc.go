// Package monitoring has nothing but tests: of the alerts and the dashboard below packaging/monitoring.
// It is a module of its own because PromQL's parser brings what no other part needs.
package monitoring
