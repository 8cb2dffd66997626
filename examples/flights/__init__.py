"""A fortnight of New York's flights, handled while processes are killed, and counted to the last one."""
