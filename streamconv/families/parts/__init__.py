"""What several families' tables share."""
