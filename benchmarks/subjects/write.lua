-- Another guest each time, so that no request waits for the row of another one.
local headers = {["Content-Type"] = "application/json"}

function request()
   return wrk.format("POST", nil, headers, string.format('{"name": "guest-%d"}', math.random(1000)))
end
