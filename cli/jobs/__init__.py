"""What commands share and no lower folder owns: it joins training, export and measuring."""
