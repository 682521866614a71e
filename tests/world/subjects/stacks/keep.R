# Vectors, matrices, models and strings.
kept <- list()
keep_vector <- function(n) numeric(1000 + n)
keep_matrix <- function(n) { m <- matrix(as.numeric(1:2500), 50); m %*% t(m) }
keep_text <- function(n) paste(rep("some text", 200), n)
keep_table <- function(n) table(sample(letters, 500, replace = TRUE))
keep_model <- function(n) lm(dist ~ speed, data = cars)
keep_sorted <- function(n) sort(runif(2000 + n))
order_of <- function(n) {
  rows <- list(keep_vector(n), keep_matrix(n), keep_text(n), keep_sorted(n))
  if (n %% 10 == 0) rows <- c(rows, list(keep_table(n), keep_model(n)))
  rows
}
set.seed(17)
for (n in 1:200) kept <- c(kept, order_of(n))
cat("kept", length(kept), "\n")
