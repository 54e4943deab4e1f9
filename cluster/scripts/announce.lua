-- In front of each script that says something to who listens. What it tells of is written by then: that this user may not use the channel is no
-- failure, whoever listens there asks at times. 1: said | 0: refused
local function announce(channel, text)
  local said = redis.pcall('PUBLISH', channel, text)
  return type(said) == 'table' and said.err and 0 or 1
end
