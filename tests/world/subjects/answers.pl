use strict; use warnings; use List::Util qw(sum); use POSIX (); use Data::Dumper;
$| = 1; $Data::Dumper::Sortkeys = 1; $Data::Dumper::Indent = 0;
print "ready\n";
while (my $line = <STDIN>) {
    my %count; $count{$_}++ for split //, $line;
    delete $count{"\n"};
    print sum(map { POSIX::floor($_ / 3) } 1 .. 10000), " ", Dumper(\%count), "\n";
}
