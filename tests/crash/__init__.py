"""Death at every system call: of transactions, of recoveries, and of the recoveries after those."""
