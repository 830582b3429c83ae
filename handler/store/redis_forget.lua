-- Drops a tombstone, unless something began under its id meanwhile.
-- KEYS: head
-- ARGV: incarnation
local facts = redis.call('HMGET', KEYS[1], 'incarnation', 'ended')
if facts[1] ~= ARGV[1] or facts[2] == '' then
    return 0
end
return redis.call('DEL', KEYS[1])
