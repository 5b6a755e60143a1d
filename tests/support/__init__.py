"""What the tests share.

kernels   kernels that record, fail, or act at a chosen call
state     what is there: names left, descriptors, children; work in forked children
trees     folder trees, and kernels for the tests of trees
users     work as another user
lab       real filesystems, servers and power cuts
"""
