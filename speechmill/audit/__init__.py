"""What people hear in a sample of clips, held against what was decided: `speechmill audit`."""
