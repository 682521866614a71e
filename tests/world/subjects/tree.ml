type tree = Leaf | Node of tree * tree
let rec make n = if n = 0 then Leaf else Node (make (n - 1), make (n - 1))
let rec count = function Leaf -> 1 | Node (l, r) -> count l + count r
let () = Printf.printf "%d\n" (count (make 16))
