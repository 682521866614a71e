create table orders (id integer primary key, customer text, total real);
create index by_customer on orders (customer, total);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)
insert into orders (customer, total) select 'customer ' || (i * 7919 % 1000), i * 1.5 from n;
create view best as select customer, sum(total) as sum from orders group by customer;
create trigger log after delete on orders begin update orders set total = total + 1 where id = old.id + 1; end;
select count(*), max(sum) from best;
select customer, group_concat(id, '-') from orders where id < 2000 group by customer order by length(customer), 2 limit 3;
delete from orders where id % 997 = 0;
select json_group_array(json_object('id', id, 'total', total)) from orders where id < 20;
select printf('%.2f', avg(total)) from orders;
