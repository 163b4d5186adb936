"""A module that computes, in processes of its own: what stays at home, what runs in the child, and what they say."""
