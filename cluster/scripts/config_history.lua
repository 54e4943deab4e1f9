-- What is kept of each version, without its text; the newest first. KEYS configs
-- {current, version, head, ...}
local versions = {}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local held = string.match(field, '^v(%d+)$')
  if held then versions[#versions + 1] = tonumber(held) end
end
table.sort(versions, function(a, b) return a > b end)
local answer = {tonumber(redis.call('HGET', KEYS[1], 'current') or '0') or 0}
for _, version in ipairs(versions) do
  local blob = redis.call('HGET', KEYS[1], 'v' .. string.format('%.0f', version))
  answer[#answer + 1] = version
  answer[#answer + 1] = string.match(blob, '^([^\n]*\n[^\n]*\n[^\n]*\n[^\n]*)\n') or ''
end
return answer
