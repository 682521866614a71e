fconfigure stdout -buffering line
puts ready
while {[gets stdin line] >= 0} {
    set parts [dict create]
    for {set n 0} {$n < 2000} {incr n} { dict set parts $n [string toupper "$line $n"] }
    puts "[dict size $parts] [dict get $parts 1999] [regsub -all {[aeiou]} $line *]"
}
