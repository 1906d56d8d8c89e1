"""The parts of benches/compare, from the bottom up: tools and postgres start things, peers are what is compared, scenarios
say under which load, loads run it, counters and system_calls read what it cost, turns interleave, memory is the one thing
measured otherwise, distance the other; bars judge, and tables, chart, document and progress tell."""
