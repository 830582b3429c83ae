-- A page of a session's records, read at one moment.
-- KEYS: head, marks, bodies
-- ARGV: incarnation, after, up to (-1: to the last), how many
-- Returns the marks and the bodies.
local head, marks, bodies = unpack(KEYS)
local facts = redis.call('HMGET', head, 'incarnation', 'ordinal')
if facts[1] ~= ARGV[1] then
    return {{}, {}}
end
local ordinal, count = tonumber(facts[2]), redis.call('LLEN', marks)
local pruned = ordinal - count
local first = math.max(tonumber(ARGV[2]) - pruned, 0)
local up_to = tonumber(ARGV[3])
if up_to < 0 or up_to > ordinal then
    up_to = ordinal
end
local last = math.min(up_to - pruned, first + tonumber(ARGV[4])) - 1
if last < first then
    return {{}, {}}
end
return {redis.call('LRANGE', marks, first, last), redis.call('LRANGE', bodies, first, last)}
