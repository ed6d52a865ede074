-- Posts the file that the environment names, and tells what came of it in one line of JSON.

local file = assert(io.open(os.getenv("BODY"), "rb"))
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "application/json"
file:close()

function done(summary, latency, _)
  local failed = summary.errors
  local text = '{"seconds": %.6f, "answers": %d, "refused": %d, "lost": %d, "p50": %.3f, "p99": %.3f}\n'
  local lost = failed.connect + failed.read + failed.write + failed.timeout
  -- Microseconds, each.
  local p50, p99 = latency:percentile(50), latency:percentile(99)
  io.write(text:format(summary.duration / 1e6, summary.requests, failed.status, lost, p50 / 1e3, p99 / 1e3))
end
