program sums
  implicit none
  real(8), allocatable :: a(:, :), b(:, :)
  integer :: i
  allocate(a(50, 50), b(50, 50))
  a = 0
  do i = 1, 50
    a(i, i) = i
  end do
  b = matmul(a, transpose(a))
  print '(F12.2)', sum(b)
  deallocate(a, b)
end program
