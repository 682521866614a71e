cat("ready\n")
input <- file("stdin", "r")
while (length(line <- readLines(input, 1)) > 0) {
  m <- matrix(1:2500, 50)
  counts <- table(strsplit(line, "")[[1]])
  cat(sum(m %*% t(m)), paste(names(counts), counts, collapse = ","), "\n")
  flush(stdout())
}
