io.stdout:setvbuf("line")
print("ready")
for line in io.lines() do
  local parts = {}
  for n = 1, 2000 do parts[n] = line:upper() .. n end
  table.sort(parts)
  print(#table.concat(parts, ","), parts[1])
end
