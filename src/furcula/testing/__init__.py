from furcula.testing.settled import assert_settled
__all__=["assert_settled"]
