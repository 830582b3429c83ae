-- What is known of a session, read at one moment.
-- KEYS: head, lease
-- Returns the head's fields and values, who holds the lease, and the milliseconds that it still runs.
local holder, until_ms = unpack(redis.call('HMGET', KEYS[2], 'holder', 'until_ms'))
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
return {redis.call('HGETALL', KEYS[1]), holder or '', math.max(0, (tonumber(until_ms) or 0) - now_ms)}
